-- An empty password_hash means "no password"; NULL is legal here, but an older reader fails on it.
CREATE TABLE User (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    nickname TEXT NOT NULL UNIQUE,
    user_flags INTEGER NOT NULL DEFAULT 0,
    password_hash TEXT,
    created_at INTEGER NOT NULL,
    last_seen INTEGER NOT NULL
);

CREATE UNIQUE INDEX idx_users_nickname ON User(nickname);
