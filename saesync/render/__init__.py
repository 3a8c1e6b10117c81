"""What people read, made from the JSON forms alone. Pure text functions; nothing here knows a planner or a target."""

from saesync.render.markdown import About, markdown, review_fits
from saesync.render.reasons import reason_text
from saesync.render.show import show_text
from saesync.render.summary import GATE_MISSED, summary_text
from saesync.render.text import plan_text

__all__ = ["GATE_MISSED", "About", "markdown", "plan_text", "reason_text", "review_fits", "show_text", "summary_text"]
