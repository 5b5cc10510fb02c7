-- Pages of roots, newest first: equal keys lie in the order of the row id, which is the message id.
CREATE INDEX IF NOT EXISTS scd_message_roots
    ON Message(COALESCE(subchannel_id, channel_id)) WHERE parent_id IS NULL;
