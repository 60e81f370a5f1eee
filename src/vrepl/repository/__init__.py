"""The repository: a directory that holds what vrepl knows of its replicas. `store.Repository` opens one.

Data movers import `digests` and `transferlog`, so this package and those two stay light: nothing here may import
what loads libcrypto (`ssl`, `hashlib` and what uses them).

    repository.json                          format, id, when it was made
    replicas/<site>-<instanceUuid>/
        replica.json                         model.ReplicaRecord
        lock                                 flock, with its owner inside
        intent.json                          only while a run is unfinished
        restore-points/<id>.json             model.RestorePoint and its last verification
        disks/<source device key>/
            base.digests                     one digest per grain, as of the restore point that it names
            <restore point id>.delta         what that restore point changed
            transfer.log                     what the unfinished run has issued and settled
    runs/<run id>.json                       run reports
    jobs/<job>.lock
    budgets/                                 what each run under way holds of what all of them share
"""
