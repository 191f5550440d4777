"""Options of the networks that are compared: `NETWORK.NAME` for one of them, `NAME` for all that have it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from autoseg.errors import UserError


def options_of_each(
    given: Mapping[str, Any], kinds: Mapping[str, Any], broken: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return {network: its options}; what is said of one network wins over what is said of all.

    `kinds`: {network: its class}; `broken`: networks that cannot be loaded, of which any option may be named. Raises
    UserError for a network that is not compared, and an option or value that no network, or not the named one, knows.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for key in sorted(given, key=lambda key: "." in key):
        network, _, option = key.rpartition(".")
        if network in broken:
            continue
        if network and network not in kinds:
            raise _refusal(key, f"no network {network!r} is compared", f"use one of: {', '.join(kinds)}")
        takers = [network] if network else [name for name, kind in kinds.items() if option in kind.defaults]
        if not takers and not broken:
            raise _unknown(key, kinds)
        for name in takers:
            try:
                kinds[name].check_options({option: given[key]})
            except UserError as error:
                raise _refusal(key, error.what, error.mend) from None
            found[name][option] = given[key]
    return found


def _unknown(key: str, kinds: Mapping[str, Any]) -> UserError:
    known = sorted({option for kind in kinds.values() for option in kind.defaults})
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"their options: {', '.join(known) or 'none'}"
    return _refusal(key, f"none of the networks compared has an option {key!r}", hint)


def _refusal(key: str, what: str, mend: str | None) -> UserError:
    return UserError(what, where=f"--network-option {key}", mend=mend)
