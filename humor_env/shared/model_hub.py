"""Whether the Hugging Face Hub answers, before a model is asked of it.

check_hub("Qwen/Qwen2.5-0.5B-Instruct")     # OSError within five seconds, if it is neither here nor to be had
"""

from __future__ import annotations

from pathlib import Path


def check_hub(name: str) -> None:
    """Raise OSError within five seconds if a model would have to come from the Hub, and the Hub does not answer.
    huggingface_hub itself tries for half a minute, with two lines on the screen for each try."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE or Path(name).exists():
        return
    hub = HfApi()
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            hub.model_info(name, timeout=5)
    except (HfHubHTTPError, HFValidationError):
        return  # it answers, or it is no name of a model: whoever loads it says so
    except Exception as problem:  # its HTTP library's errors of the transport
        raise OSError(
            f"it is not on this machine, and {hub.endpoint} does not answer: {str(problem) or type(problem).__name__}"
        ) from problem
