"""Ends the imports of the fork server of the loader workers; imported last by it, and by nothing else."""

from utils.imports import end_imports

end_imports()
