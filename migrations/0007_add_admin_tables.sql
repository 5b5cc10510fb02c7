-- banned_until NULL is for ever.
CREATE TABLE Ban (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ban_type TEXT NOT NULL CHECK (ban_type IN ('user', 'ip')),
    user_id INTEGER REFERENCES User(id) ON DELETE CASCADE,
    nickname TEXT,
    ip_cidr TEXT,
    reason TEXT NOT NULL,
    shadowban INTEGER NOT NULL DEFAULT 0,
    banned_at INTEGER NOT NULL,
    banned_until INTEGER,
    banned_by TEXT NOT NULL
);

CREATE INDEX idx_ban_user ON Ban(user_id) WHERE ban_type = 'user';
CREATE INDEX idx_ban_ip ON Ban(ip_cidr) WHERE ban_type = 'ip';
CREATE INDEX idx_ban_expiry ON Ban(banned_until) WHERE banned_until IS NOT NULL;

CREATE TABLE AdminAction (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    admin_nickname TEXT NOT NULL,
    action_type TEXT NOT NULL,
    target_type TEXT NOT NULL CHECK (target_type IN ('user', 'ip', 'message', 'channel')),
    target_id INTEGER,
    target_identifier TEXT,
    details TEXT,
    performed_at INTEGER NOT NULL,
    ip_address TEXT NOT NULL
);

CREATE INDEX idx_admin_action_admin ON AdminAction(admin_nickname, performed_at DESC);
CREATE INDEX idx_admin_action_target ON AdminAction(target_type, target_id);
CREATE INDEX idx_admin_action_time ON AdminAction(performed_at DESC);
