-- Names that differ in case only are refused to newcomers.
CREATE INDEX IF NOT EXISTS scd_user_nickname_nocase ON User(nickname COLLATE NOCASE);
CREATE INDEX IF NOT EXISTS scd_login_alias_nocase ON scd_login_alias(login_name COLLATE NOCASE);
