CREATE TABLE ChannelParticipant (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    channel_id INTEGER NOT NULL REFERENCES Channel(id) ON DELETE CASCADE,
    user_id INTEGER REFERENCES User(id) ON DELETE CASCADE,
    session_id INTEGER,
    nickname TEXT NOT NULL,
    joined_at INTEGER NOT NULL,
    CHECK (user_id IS NOT NULL OR session_id IS NOT NULL)
);

CREATE INDEX idx_channel_participant_channel ON ChannelParticipant(channel_id);
CREATE INDEX idx_channel_participant_user ON ChannelParticipant(user_id);
CREATE INDEX idx_channel_participant_session ON ChannelParticipant(session_id);
CREATE UNIQUE INDEX idx_channel_participant_unique_user
    ON ChannelParticipant(channel_id, user_id) WHERE user_id IS NOT NULL;
CREATE UNIQUE INDEX idx_channel_participant_unique_session
    ON ChannelParticipant(channel_id, session_id) WHERE user_id IS NULL;
