CREATE TABLE UserChannelState (
    user_id INTEGER NOT NULL REFERENCES User(id) ON DELETE CASCADE,
    channel_id INTEGER NOT NULL REFERENCES Channel(id) ON DELETE CASCADE,
    subchannel_id INTEGER,
    last_read_at INTEGER NOT NULL DEFAULT 0,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, channel_id, subchannel_id)
);

CREATE INDEX idx_user_channel_state_user ON UserChannelState(user_id);
CREATE INDEX idx_user_channel_state_updated ON UserChannelState(updated_at);
