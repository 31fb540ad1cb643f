"""Settings whose secrets may lie in Prefect's Secret blocks."""

from __future__ import annotations

from pydantic import SecretStr

from schema.errors import ConfigError
from schema.settings import Settings

BLOCK = "block:"


def open_settings() -> Settings:
    """Settings from the environment; ``SUPABASE_KEY=block:NAME`` takes the value of Prefect's Secret block NAME.

    So a deployment holds the name of a secret, never the secret itself.

    Raises:
        ConfigError: there is no such block, or no Prefect server that has it.
    """
    settings = Settings()
    named = {
        name: value.get_secret_value().removeprefix(BLOCK)
        for name in ("database_url", "supabase_key")
        if (value := getattr(settings, name)) is not None and value.get_secret_value().startswith(BLOCK)
    }
    return settings.model_copy(update={name: SecretStr(_load(name, block)) for name, block in named.items()})


def _load(name: str, block: str) -> str:
    from prefect.blocks.system import Secret  # seconds that most commands can do without

    try:
        return str(Secret.load(block, _sync=True).get())  # type: ignore[call-arg, union-attr]
    except ValueError as error:
        told = str(error).partition("\n")[0]
    except Exception as error:  # noqa: BLE001 - whatever keeps the server from answering
        told = f"Prefect's server does not answer: {type(error).__name__}"
    raise ConfigError(
        f"{name.upper()} names the Secret block {block}, which cannot be loaded: {told}; "
        "make it in Prefect's UI and set PREFECT_API_URL, or give the value itself"
    )
