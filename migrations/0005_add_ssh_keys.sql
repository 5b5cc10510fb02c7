CREATE TABLE SSHKey (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id INTEGER NOT NULL REFERENCES User(id) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL UNIQUE,
    public_key TEXT NOT NULL,
    key_type TEXT NOT NULL,
    label TEXT,
    added_at INTEGER NOT NULL,
    last_used_at INTEGER
);

CREATE UNIQUE INDEX idx_ssh_fingerprint ON SSHKey(fingerprint);
CREATE INDEX idx_ssh_user ON SSHKey(user_id);
