"""From radar products to observations that keep the convention."""
