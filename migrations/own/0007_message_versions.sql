-- Without it, every message that goes looks through all versions for its own.
CREATE INDEX IF NOT EXISTS scd_message_versions ON MessageVersion(message_id);
