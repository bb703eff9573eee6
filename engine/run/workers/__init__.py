"""A run by several processes, its workers: each computes packs into the shared folder, one hands them out."""
