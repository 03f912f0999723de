"""Is a response right? Its final answer is found, read, and compared with the gold one."""
