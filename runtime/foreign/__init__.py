"""Exports of other projects: what their files tell, as a spec."""
