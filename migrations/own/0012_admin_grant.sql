-- Admins by the operator's word, beside those that the configuration names.
CREATE TABLE IF NOT EXISTS scd_admin_grant (
    user_id INTEGER NOT NULL PRIMARY KEY REFERENCES User(id) ON DELETE CASCADE,
    granted_by TEXT NOT NULL,
    granted_at INTEGER NOT NULL
);
