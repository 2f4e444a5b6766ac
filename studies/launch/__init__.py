"""Starting workers by the schedulers of other machines."""
