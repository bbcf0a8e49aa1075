"""The only layer that imports Ray. Nothing is imported here: hosts load its modules one by one."""
