-- @foreign_keys=off
-- NULL is never equal to NULL, so the old key let one place have many read marks and none of them can be trusted:
-- they are dropped, and "no subchannel" is 0 from here on. last_read_at is milliseconds, updated_at seconds.
DROP TABLE UserChannelState;

CREATE TABLE UserChannelState (
    user_id INTEGER NOT NULL REFERENCES User(id) ON DELETE CASCADE,
    channel_id INTEGER NOT NULL REFERENCES Channel(id) ON DELETE CASCADE,
    subchannel_id INTEGER NOT NULL DEFAULT 0,
    last_read_at INTEGER NOT NULL DEFAULT 0,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, channel_id, subchannel_id)
);

CREATE INDEX idx_user_channel_state_user ON UserChannelState(user_id);
CREATE INDEX idx_user_channel_state_updated ON UserChannelState(updated_at);
