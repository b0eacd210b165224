"""Save networks to folders and the Hugging Face Hub, also for transformers and transformers.js."""

from .folder import push_to_hub as push_to_hub
from .folder import save_pretrained as save_pretrained
