"""Whether a store holds what plans and raw files say today: both may have been changed since preprocessing."""

from __future__ import annotations

import logging

from autoseg.errors import UserError
from autoseg.plans import Configuration, Plans
from autoseg.preprocessing.dataset import input_hash
from autoseg.preprocessing.geometry import new_shape, target_spacing
from autoseg.preprocessing.raw_checksums import RawChecksums
from autoseg.raw import Dataset, told
from autoseg.store import CaseStore
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)


def check_agreement(
    store: CaseStore, dataset: Dataset, plans: Plans, configuration: Configuration, workspace: Workspace
) -> None:
    """Raise UserError if cases of the store have another spacing than the configuration; warn of other changes since.

    Other changes are those of raw files, by content, labels and normalisation, as far as a case has them.
    """
    words = ("--keep-plans", "--plans-name", plans.plans_name)
    mend = f"run: {told('plan-and-preprocess', dataset, workspace, *words)}"
    records = [store.read(case).record for case in store.cases]
    for record in records:
        found = record.properties
        wanted = new_shape(found.shape_after_crop, found.spacing, target_spacing(configuration, found.spacing))
        if tuple(wanted) != found.shape_resampled:
            raise UserError(
                f"case {record.id} was preprocessed to {found.shape_resampled} voxels; with the spacing "
                f"{configuration.spacing} of configuration {configuration.name!r} it has {tuple(wanted)}",
                where=store.folder,
                mend=mend,
            )
    cases = {case.id: case for case in (*dataset.cases, *dataset.unlabelled)}
    checksums = RawChecksums.of(workspace, dataset)
    identities = checksums.identities(cases[record.id] for record in records if record.id in cases)
    checksums.write()
    hashes = {case: input_hash(identity, cases[case], plans, configuration) for case, identity in identities.items()}
    changed = [record.id for record in records if record.input_hash != hashes.get(record.id, record.input_hash)]
    if changed:
        log.warning(
            "%d of %d case(s), such as %s, were preprocessed from files that have changed since, by other settings "
            "than the plans have now, or by an earlier version. To mend it, %s",
            len(changed), len(records), changed[0], mend,
        )  # fmt: skip
