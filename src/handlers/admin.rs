//! Administration (BEHAVIOUR.md 5.2): who may ask at all.

use crate::ids::ChannelId;
use crate::shard::Shard;
use crate::shard::session::SessionKey;
use crate::wire::records::Failed;
use crate::wire::{ErrorCode, client, server};

const REFUSAL: &str = "Permission denied: admin access required";

/// Refuses an admin's request to everybody else, before it is read; `true` when it did.
pub fn refuse_unless_admin(shard: &mut Shard, key: SessionKey, code: u8) -> bool {
    if !is_for_admins(code) || shard.clients.session(key).is_admin() {
        return false;
    }
    let message = REFUSAL.as_bytes();
    match code {
        client::BanUser::CODE => shard.reply(key, server::UserBanned { outcome: Err(Failed { message }) }),
        client::BanIp::CODE => shard.reply(key, server::IpBanned { outcome: Err(Failed { message }) }),
        client::UnbanUser::CODE => shard.reply(key, server::UserUnbanned { success: false, message }),
        client::UnbanIp::CODE => shard.reply(key, server::IpUnbanned { success: false, message }),
        client::DeleteUser::CODE => shard.reply(key, server::UserDeleted { success: false, message }),
        client::DeleteChannel::CODE => {
            shard.reply(key, server::ChannelDeleted { success: false, channel_id: ChannelId(0), message });
        }
        _ => shard.error(key, ErrorCode::PermissionDenied, REFUSAL),
    }
    true
}

fn is_for_admins(code: u8) -> bool {
    matches!(
        code,
        client::BanUser::CODE
            | client::BanIp::CODE
            | client::UnbanUser::CODE
            | client::UnbanIp::CODE
            | client::ListBans::CODE
            | client::DeleteUser::CODE
            | client::DeleteChannel::CODE
    )
}
