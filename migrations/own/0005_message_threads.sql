-- The skeleton of a thread, and how many of its replies live, without reading the messages.
CREATE INDEX IF NOT EXISTS scd_message_threads
    ON Message(thread_root_id, deleted_at, parent_id) WHERE thread_root_id IS NOT NULL;
