"""The configuration: TOML, validated whole (every mistake at once), and handed on as settings."""

from vrepl.config.load import LoadedConfig, find, load, parse, search_path
from vrepl.config.model import Config

__all__ = ["Config", "LoadedConfig", "find", "load", "parse", "search_path"]
