-- Unread counts of a place without reading the messages, and what of it has expired.
CREATE INDEX IF NOT EXISTS scd_message_places
    ON Message(COALESCE(subchannel_id, channel_id), created_at, deleted_at, author_user_id);
