"""A run's configuration: YAML in, a validated, immutable :class:`Config` out, or one message per fault."""

from rbc_warp.config.load import load_config
from rbc_warp.config.schema import Agents, AgentSettings, Config, Train, World

__all__ = ["AgentSettings", "Agents", "Config", "Train", "World", "load_config"]
