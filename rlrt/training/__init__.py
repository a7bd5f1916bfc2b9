"""The loop on one page, and what a step is made of: scores, credit, loss, teacher."""
