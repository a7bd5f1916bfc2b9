"""Several processes as one run: sharing of work, exchange of data between ranks, and the loss of a rank."""
