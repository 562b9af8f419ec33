"""The questions that a run can answer; each module measures one."""
