"""The data mover: worker process, pool, pair, and the lossless messages between them and the control process."""
