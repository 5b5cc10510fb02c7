-- Former names under which a renamed account may still sign in (the password is salted with the name of its day).
CREATE TABLE IF NOT EXISTS scd_login_alias (
    login_name TEXT NOT NULL PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES User(id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL
);

CREATE INDEX IF NOT EXISTS scd_login_alias_user ON scd_login_alias(user_id);
