-- Rows that still wait for their thread root; empty, and free of cost, once all are repaired.
CREATE INDEX IF NOT EXISTS scd_unrooted_messages ON Message(id) WHERE thread_root_id IS NULL;
