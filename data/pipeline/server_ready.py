"""The last import of the fork server of the loader workers; nothing else imports it."""

from utils.imports import end_imports

end_imports()
