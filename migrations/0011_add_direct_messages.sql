ALTER TABLE Channel ADD COLUMN is_dm INTEGER NOT NULL DEFAULT 0;
ALTER TABLE User ADD COLUMN encryption_public_key BLOB;

-- The default of created_at is seconds, every program writes milliseconds.
CREATE TABLE ChannelAccess (
    channel_id INTEGER NOT NULL REFERENCES Channel(id) ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES User(id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    PRIMARY KEY (channel_id, user_id)
);

CREATE INDEX idx_channel_access_user ON ChannelAccess(user_id);
CREATE INDEX idx_channel_access_channel ON ChannelAccess(channel_id);

CREATE TABLE DMInvite (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    initiator_user_id INTEGER NOT NULL REFERENCES User(id) ON DELETE CASCADE,
    target_user_id INTEGER NOT NULL REFERENCES User(id) ON DELETE CASCADE,
    is_encrypted INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL,
    UNIQUE (initiator_user_id, target_user_id)
);

CREATE INDEX idx_dm_invite_initiator ON DMInvite(initiator_user_id);
CREATE INDEX idx_dm_invite_target ON DMInvite(target_user_id);
