"""The eviction policies, one small file each."""
