-- @foreign_keys=off
-- Invites whose user is gone are carried over too; with the keys on, one such row would stop the migration.
CREATE TABLE DMInvite_rebuilt (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    initiator_user_id INTEGER REFERENCES User(id) ON DELETE CASCADE,
    target_user_id INTEGER REFERENCES User(id) ON DELETE CASCADE,
    initiator_session_id INTEGER,
    target_session_id INTEGER,
    is_encrypted INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL,
    CHECK (initiator_user_id IS NOT NULL OR initiator_session_id IS NOT NULL),
    CHECK (target_user_id IS NOT NULL OR target_session_id IS NOT NULL),
    UNIQUE (initiator_user_id, target_user_id)
);

INSERT INTO DMInvite_rebuilt (id, initiator_user_id, target_user_id, is_encrypted, created_at)
SELECT id, initiator_user_id, target_user_id, is_encrypted, created_at FROM DMInvite;

DELETE FROM sqlite_sequence WHERE name = 'DMInvite_rebuilt';
INSERT INTO sqlite_sequence (name, seq) SELECT 'DMInvite_rebuilt', seq FROM sqlite_sequence WHERE name = 'DMInvite';

DROP TABLE DMInvite;
ALTER TABLE DMInvite_rebuilt RENAME TO DMInvite;

CREATE INDEX idx_dm_invite_initiator_user ON DMInvite(initiator_user_id);
CREATE INDEX idx_dm_invite_target_user ON DMInvite(target_user_id);
CREATE INDEX idx_dm_invite_initiator_session ON DMInvite(initiator_session_id);
CREATE INDEX idx_dm_invite_target_session ON DMInvite(target_session_id);
