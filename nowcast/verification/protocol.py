"""What scores depend on besides the nowcaster, as a record with a hash."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from nowcast import __version__

SCORING_VERSION = 2  # raised by hand whenever a score would come out otherwise
POOLING = "counts and sums are added over pixels and cases, and scores formed from them"
AVERAGING = "each lead time by itself; pooled: counts and sums are added over lead times as well"


class ProtocolError(ValueError):
    """Scores of different protocols were put beside each other."""


@dataclass(frozen=True)
class Protocol:
    """What scores depend on besides the nowcaster: scores of different protocols do not compare.

    Parameters
    ----------
    data_fingerprint, grid_id
        Of the observations.
    variable, units
        What was scored.
    split
        The block of time that was asked for, with its name; ``all`` if none was.
    selection
        Which of its cases: ``all``, ``wet``, ``dry`` or ``events``.
    period
        First and last base time.
    cases
        How many base times.
    base_times_sha256
        Which ones.
    lead_minutes, thresholds
        What was scored.
    baselines
        Whose reach decides which pixels count: by name, the frames that each uses.
    missing_rule
        Which pixels count.
    view
        What was scored of the fields: themselves, accumulations, places.
    measures
        Parameters of each family of scores.
    pooling, averaging
        How cases, pixels and lead times become one figure.
    scoring_version
        Of the code.
    """

    data_fingerprint: str
    grid_id: str
    variable: str
    units: str
    split: str
    selection: str
    period: str
    cases: int
    base_times_sha256: str
    lead_minutes: tuple[float, ...]
    thresholds: tuple[float, ...]
    baselines: dict[str, dict[str, float]]
    missing_rule: str
    view: str = "fields"
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    pooling: str = POOLING
    averaging: str = AVERAGING
    scoring_version: int = SCORING_VERSION

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def attributes(self) -> dict[str, str]:
        """What is stamped on every score file; the code's version is told, not hashed."""
        return {
            "protocol": json.dumps(asdict(self)),
            "protocol_sha256": self.sha256,
            "code_version": f"{__version__} {commit()}".strip(),
        }


def protocol_of(scores: xr.Dataset) -> dict[str, Any]:
    """Give the protocol that scores are stamped with.

    Raises
    ------
    ProtocolError
        If there is none, or it is not the one that its hash was taken of.
    """
    text = scores.attrs.get("protocol", "")
    try:
        record: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProtocolError(
            f"the scores have no protocol (attribute 'protocol': {text[:40]!r}); only scores that "
            "`nowcast verify` wrote are compared"
        ) from error
    found = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    if found != scores.attrs.get("protocol_sha256"):
        raise ProtocolError(
            f"the protocol of the scores has the hash {found[:12]}, and they are stamped with "
            f"{scores.attrs.get('protocol_sha256', 'none')[:12]}: one was changed by hand; verify "
            "again"
        )
    return record


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Name the fields in which two protocols differ, with both values.

    Examples
    --------
    >>> differences({"cases": 3, "units": "dBZ"}, {"cases": 4, "units": "dBZ"})
    ['cases: 3 and 4']
    """
    told = []
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name, "absent"), second.get(name, "absent")
        if isinstance(one, dict) and isinstance(other, dict):
            told += [f"{name}.{line}" for line in differences(one, other)]
        elif one != other:
            told.append(f"{name}: {one} and {other}")
    return told


def check_same_protocol(scores: Mapping[str, xr.Dataset]) -> None:
    """Refuse scores of different protocols.

    Parameters
    ----------
    scores
        By the name under which a person knows them.

    Raises
    ------
    ProtocolError
        Naming the two, and each field in which their protocols differ; or if there are none.
    """
    if not scores:
        raise ProtocolError("no scores were given; name runs of verifications, or their files")
    protocols = {name: protocol_of(one) for name, one in scores.items()}
    first, *others = protocols
    for other in others:
        differ = differences(protocols[first], protocols[other])
        if differ:
            raise ProtocolError(
                f"{first} and {other} were not scored by the same protocol, so they do not "
                f"compare; they differ in {'; '.join(differ)}; verify them together, or again by "
                "one protocol"
            )


def commit() -> str:
    """Give the commit of the code, if it runs from a checkout; else nothing."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
