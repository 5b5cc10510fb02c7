-- Whether the initiator insists on encryption, when (ms) the target was last shown the invitation, and what the two are
-- called, which of visitors stands nowhere else.
CREATE TABLE IF NOT EXISTS scd_dm_invite (
    invite_id INTEGER NOT NULL PRIMARY KEY REFERENCES DMInvite(id) ON DELETE CASCADE,
    encryption_required INTEGER NOT NULL,
    shown_at INTEGER NOT NULL,
    initiator_nickname TEXT NOT NULL,
    target_nickname TEXT NOT NULL
);

-- Who left a conversation for good while the other side stayed: both may be brought together again in the same channel.
CREATE TABLE IF NOT EXISTS scd_dm_former (
    channel_id INTEGER NOT NULL REFERENCES Channel(id) ON DELETE CASCADE,
    user_id INTEGER REFERENCES User(id) ON DELETE CASCADE,
    nickname TEXT NOT NULL,
    left_at INTEGER NOT NULL
);

CREATE INDEX IF NOT EXISTS scd_dm_former_channel ON scd_dm_former(channel_id);
CREATE INDEX IF NOT EXISTS scd_dm_former_user ON scd_dm_former(user_id) WHERE user_id IS NOT NULL;
