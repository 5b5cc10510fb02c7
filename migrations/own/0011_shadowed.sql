-- Texts written under a shadow ban: by which ban, by which account, in which session. Hidden while that ban counts. For an
-- edit of what was open, `kept` is the row of MessageVersion that others go on reading; for a post there is none.
CREATE TABLE IF NOT EXISTS scd_shadowed (
    message_id INTEGER NOT NULL REFERENCES Message(id) ON DELETE CASCADE,
    ban_id INTEGER NOT NULL REFERENCES Ban(id) ON DELETE CASCADE,
    user_id INTEGER,
    session_id INTEGER NOT NULL,
    kept INTEGER,
    PRIMARY KEY (message_id, ban_id)
) WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS scd_shadowed_ban ON scd_shadowed(ban_id);
-- Asked with every post; almost always empty.
CREATE INDEX IF NOT EXISTS scd_ban_shadow ON Ban(user_id, nickname, banned_until) WHERE shadowban <> 0;
