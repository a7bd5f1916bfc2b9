"""MLflow's names and complaints: names that it accepts, and its errors as a sentence with what to do."""

from __future__ import annotations

import hashlib
import re

from rlrt.errors import first_line
from rlrt.records.secrets import masked, without_password

LONGEST_NAME = 250
"""Characters of a metric's or a parameter's name that MLflow accepts."""
REFUSED = re.compile(r"[^\w.\- :/]")
"""Signs that MLflow accepts in no name."""
OUTDATED = re.compile(r"out-of-date database schema \(found version (\w+)")
BROKEN = re.compile(
    r"\([\w.]+Error\) (.*(?:no such (?:table|column)|no column|duplicate column|already exists|malformed|not a database).*)"
)
CREDENTIALS = re.compile(
    r"error code (401|403)|\b(401|403) Client Error|PERMISSION_DENIED|UNAUTHENTICATED|[Nn]ot authenticated|Unauthorized"
)


def accepted(name: str) -> str:
    """Return a name as MLflow accepts it: itself, or with other signs and a digest, so that two names never become one."""
    parts = [part for part in REFUSED.sub("_", name).split("/") if part not in ("", ".", "..")]
    plain = "/".join(parts)
    if plain == name and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[: LONGEST_NAME - 9].rstrip('/')}-{digest}"


def is_taken(error: BaseException) -> bool:
    """True if a store says that what was to be made is there already: SQLite and PostgreSQL say unique, MySQL duplicate."""
    return re.search(r"unique constraint|duplicate entry", str(error), re.IGNORECASE) is not None


def reason(error: BaseException, uri: str) -> str:
    """Return why MLflow failed, and what to do where that is known; without secrets."""
    text = str(error)
    if match := OUTDATED.search(text):
        return schema_reason(match[1], without_password(uri))
    if match := BROKEN.search(text):
        return (
            f"the store is damaged, or an upgrade of it was cut: {masked(match[1], uri)[:200]}; put its backup back, or send "
            "the runs to a new one by python -m rlrt.sync FOLDER --uri sqlite:///NEW.db"
        )
    if match := CREDENTIALS.search(text):
        number = next((f" ({found})" for found in match.groups() if found), "")
        return (
            f"the server refused the user, the password or the token{number}; give them as MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, as MLFLOW_TRACKING_TOKEN, or in the URI; python -m rlrt.sync then sends what is missing"
        )
    return masked(first_line(error), uri)


def schema_reason(found: str, uri: str) -> str:
    """Return what to do about a store whose tables have another version than this MLflow's."""
    import mlflow
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config  # MLflow has no public list of its versions

    if found == "None":
        return (
            "its tables have no version: their creation was cut; put a backup back, or set tracking.uri to a new file"
        )
    known = {script.revision for script in ScriptDirectory.from_config(_get_alembic_config(db_url="")).walk_revisions()}
    if found not in known:
        return f"the store was made by a newer MLflow than {mlflow.__version__} (tables of version {found}); install that one"
    return (
        f"the store is older than MLflow {mlflow.__version__}; make a backup of it, then run: mlflow db upgrade '{uri}'"
    )
