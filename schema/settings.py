"""Read settings from the environment: where data is stored and which services to use."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Hold the settings that differ between machines, not between campaigns."""

    model_config = SettingsConfigDict(env_prefix="PIXELLOOP_", frozen=True, extra="ignore")

    database_url: SecretStr | None = Field(
        None,
        validation_alias="DATABASE_URL",
        description="an existing Postgres; the program starts its own if left out",
    )
    supabase_url: str | None = Field(
        None, validation_alias="SUPABASE_URL", description="a Supabase project that keeps runs instead of Postgres"
    )
    supabase_key: SecretStr | None = Field(
        None, validation_alias="SUPABASE_KEY", description="the project's secret key, never a publishable one"
    )
    bucket: str | None = Field(
        None, description="private bucket of that project's storage for copies of LoRA files and pictures"
    )
    notify: SecretStr | None = Field(
        None,
        description="where notices go: addresses as Apprise has them, or block:TYPE/NAME of Prefect; spaces between",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int = Field(1, ge=1, description="CPU threads of trainer and of sampler, each")
    warm_trainer: bool = Field(True, description="keep the base model loaded for the next trial, in main memory")
