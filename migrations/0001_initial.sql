-- Files from before versions were recorded hold these tables already, hence IF NOT EXISTS throughout.
CREATE TABLE IF NOT EXISTS Channel (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    description TEXT,
    channel_type INTEGER NOT NULL DEFAULT 1,
    message_retention_hours INTEGER NOT NULL DEFAULT 168,
    created_by INTEGER,
    created_at INTEGER NOT NULL,
    is_private INTEGER NOT NULL DEFAULT 0
);

CREATE UNIQUE INDEX IF NOT EXISTS idx_channel_name ON Channel(name);

CREATE TABLE IF NOT EXISTS Session (
    id INTEGER PRIMARY KEY,
    user_id INTEGER,
    nickname TEXT NOT NULL,
    connection_type TEXT NOT NULL,
    connected_at INTEGER NOT NULL,
    last_activity INTEGER NOT NULL
);

CREATE INDEX IF NOT EXISTS idx_sessions_activity ON Session(last_activity);

CREATE TABLE IF NOT EXISTS Message (
    id INTEGER PRIMARY KEY,
    channel_id INTEGER NOT NULL REFERENCES Channel(id) ON DELETE CASCADE,
    subchannel_id INTEGER,
    parent_id INTEGER REFERENCES Message(id) ON DELETE CASCADE,
    thread_root_id INTEGER REFERENCES Message(id) ON DELETE CASCADE,
    author_user_id INTEGER,
    author_nickname TEXT NOT NULL,
    content TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    edited_at INTEGER,
    deleted_at INTEGER
);

CREATE INDEX IF NOT EXISTS idx_messages_channel ON Message(channel_id, created_at DESC);
CREATE INDEX IF NOT EXISTS idx_messages_parent ON Message(parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS idx_messages_thread_root ON Message(thread_root_id) WHERE thread_root_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS idx_messages_retention ON Message(created_at, parent_id);

CREATE TABLE IF NOT EXISTS MessageVersion (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id INTEGER NOT NULL REFERENCES Message(id) ON DELETE CASCADE,
    content TEXT NOT NULL,
    author_nickname TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    version_type TEXT NOT NULL CHECK (version_type IN ('created', 'edited', 'deleted'))
);
