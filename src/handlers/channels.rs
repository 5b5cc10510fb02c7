//! Channels: listing, entering, leaving, creating (BEHAVIOUR.md 2.5 to 2.11).

use super::admin;
use crate::ids::{ChannelId, UserId};
use crate::metrics::RateLimit;
use crate::shard::presence::spell;
use crate::shard::roster::Repeat;
use crate::shard::session::SessionKey;
use crate::shard::{NoPlace, Place, Shard, created, subchannel_created_text};
use crate::store::command::NewChannel;
use crate::store::{Act, Channel, ChannelType, Command, Event, Name, Refusal};
use crate::text;
use crate::wire::ErrorCode;
use crate::wire::client;
use crate::wire::codec::{List, STRING_BYTES_MAX};
use crate::wire::frame::PAYLOAD_BYTES_MAX;
use crate::wire::records::{ChannelEntry, Failed, SubchannelEntry};
use crate::wire::server;

/// Fixed fields of a list entry, both string lengths included; the larger of the two kinds.
const ENTRY_BYTES: usize = 32;

/// LIST_CHANNELS: by name from the start, by id behind a cursor (D-26).
pub fn list_channels(shard: &mut Shard, key: SessionKey, request: &client::ListChannels) {
    let mut channels: Vec<Channel> =
        shard.channels.top_level().filter(|channel| channel.id > request.from_channel_id).cloned().collect();
    if request.from_channel_id == ChannelId(0) {
        channels.sort_by(|a, b| a.name.cmp(&b.name));
    } else {
        channels.sort_by_key(|channel| channel.id);
    }
    if request.limit > 0 {
        channels.truncate(request.limit.into());
    }
    let entries = channels.iter().map(|channel| {
        let subchannels = shard.channels.subchannels(channel.id).count();
        ChannelEntry {
            channel_id: channel.id,
            name: fitting(&channel.name),
            description: fitting(&channel.description),
            user_count: shard.roster.subscribers(channel.id),
            is_operator: false,
            channel_type: channel.channel_type.to_wire(),
            retention_hours: channel.retention_hours,
            has_subchannels: subchannels > 0,
            subchannel_count: u16::try_from(subchannels).unwrap_or(u16::MAX),
            archive_enabled: shard.settings.archive_flag(channel),
        }
    });
    let list = one_frame(entries, |entry| entry.name.len() + entry.description.len());
    shard.reply(key, server::ChannelList { channels: list });
}

/// GET_SUBCHANNELS: sorted by name.
pub fn get_subchannels(shard: &mut Shard, key: SessionKey, request: &client::GetSubchannels) {
    let public = shard.channels.get(request.channel_id).filter(|channel| channel.participants.is_none());
    if public.is_none() {
        return shard.error(key, ErrorCode::ChannelNotFound, "Channel not found");
    }
    let mut subchannels: Vec<Channel> = shard.channels.subchannels(request.channel_id).cloned().collect();
    subchannels.sort_by(|a, b| a.name.cmp(&b.name));
    let entries = subchannels.iter().map(|channel| SubchannelEntry {
        subchannel_id: channel.id,
        name: fitting(&channel.name),
        description: fitting(&channel.description),
        channel_type: channel.channel_type.to_wire(),
        retention_hours: channel.retention_hours,
    });
    let list = one_frame(entries, |entry| entry.name.len() + entry.description.len());
    shard.reply(key, server::SubchannelList { channel_id: request.channel_id, subchannels: list });
}

/// As many entries as one frame carries: what an operator stored by hand may be longer than any client could send.
pub(super) fn one_frame<T>(entries: impl Iterator<Item = T>, text_bytes: impl Fn(&T) -> usize) -> List<T> {
    let mut room = PAYLOAD_BYTES_MAX - ENTRY_BYTES;
    let fits = |entry: &T| {
        let bytes = text_bytes(entry) + ENTRY_BYTES;
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    };
    List(entries.take(usize::from(u16::MAX)).take_while(fits).collect())
}

/// A stored text as far as one string carries it.
pub(super) fn fitting(text: &[u8]) -> &[u8] {
    &text[..text.len().min(STRING_BYTES_MAX)]
}

/// JOIN_CHANNEL: being listed as present. It subscribes to nothing.
pub fn join_channel(shard: &mut Shard, key: SessionKey, request: &client::JoinChannel) {
    let refuse = |shard: &mut Shard, text: &str| {
        let (channel_id, message) = (request.channel_id, text.as_bytes());
        shard.reply(key, server::JoinResponse { success: false, channel_id, subchannel_id: None, message });
    };
    let place = match shard.channels.place(request.channel_id, request.subchannel_id) {
        Ok(place) => place,
        Err(NoPlace::Channel) => return refuse(shard, "Channel not found"),
        Err(NoPlace::Subchannel) => return refuse(shard, "Subchannel does not exist"),
    };
    if !may_enter(shard, key, place) {
        return refuse(shard, NOT_A_PARTICIPANT);
    }
    shard.note_spelling(key, place.id, place.spelling);
    shard.join(key, place.id, place.spelling);
    let (channel_id, subchannel_id) = (request.channel_id, request.subchannel_id);
    shard.reply(key, server::JoinResponse { success: true, channel_id, subchannel_id, message: b"Joined channel" });
    shard.announce(key, Repeat { channel: true, server: false });
}

/// What somebody who does not take part in a direct message is told.
pub const NOT_A_PARTICIPANT: &str = "Not a participant in this DM";

/// Whether the session may see a place: everybody may, but for direct messages.
pub fn may_enter(shard: &mut Shard, key: SessionKey, place: Place) -> bool {
    shard.about(place.id);
    let viewer = shard.clients.session(key).viewer();
    shard.channels.get(place.id).is_none_or(|channel| viewer.may_enter(channel))
}

/// LEAVE_CHANNEL: subscriptions stay, but for a direct message that is left for good.
pub fn leave_channel(shard: &mut Shard, key: SessionKey, request: &client::LeaveChannel) {
    let refuse = |shard: &mut Shard, text: &str| {
        let (channel_id, message) = (request.channel_id, text.as_bytes());
        shard.reply(key, server::LeaveResponse { success: false, channel_id, subchannel_id: None, message });
    };
    let Some((joined, spelling)) = shard.clients.session(key).joined else {
        return refuse(shard, "Not currently joined to any channel");
    };
    let parent = shard.channels.get(joined).and_then(|channel| channel.parent);
    let (real, _) = spell(joined, parent, spelling);
    if ![ChannelId(0), joined, real].contains(&request.channel_id) {
        return refuse(shard, "Session is not joined to the requested channel");
    }
    if shard.channels.is_dm(joined) && request.permanent.0 == Some(true) {
        return super::dms::leave_for_good(shard, key, joined);
    }
    left(shard, key, real);
}

/// Takes the session out of the place it joined, and says so.
pub fn left(shard: &mut Shard, key: SessionKey, channel: ChannelId) {
    shard.leave(key);
    let message = b"Left channel";
    shard.reply(key, server::LeaveResponse { success: true, channel_id: channel, subchannel_id: None, message });
    shard.announce(key, Repeat::default());
}

/// Answers a CREATE_CHANNEL that is refused.
pub fn refuse_channel(shard: &mut Shard, key: SessionKey, text: &str) {
    shard.reply(key, server::ChannelCreated { outcome: Err(Failed { message: text.as_bytes() }) });
}

/// Answers a CREATE_SUBCHANNEL that is refused.
pub fn refuse_subchannel(shard: &mut Shard, key: SessionKey, text: &str) {
    shard.reply(key, server::SubchannelCreated { outcome: Err(Failed { message: text.as_bytes() }) });
}

/// CREATE_CHANNEL.
pub fn create_channel(shard: &mut Shard, key: SessionKey, request: &client::CreateChannel<'_>) {
    const ANONYMOUS: &str = "Only registered users can create channels. Please register or log in.";
    let creator = shard.clients.session(key).user().ok_or(ANONYMOUS);
    match creator.and_then(|creator| new_channel(request, Some(creator))) {
        Ok(channel) => create(shard, key, channel, "Channel name already exists", refuse_channel),
        Err(text) => refuse_channel(shard, key, text),
    }
}

/// A channel as it may be created. The lengths count bytes.
///
/// # Errors
/// What is wrong with it, in the words of BEHAVIOUR.md 2.8.
pub fn new_channel(
    request: &client::CreateChannel<'_>,
    created_by: Option<UserId>,
) -> Result<NewChannel, &'static str> {
    check_length(request.name, 3..=50, "Channel name must be 3-50 characters")?;
    check_length(request.display_name, 1..=100, "Display name must be 1-100 characters")?;
    let details = check_details(request.description.unwrap_or(b""), request.channel_type, request.retention_hours)?;
    check_name(request.name)?;
    let display_name = Name::from(&text::sanitized(request.display_name)[..]);
    check_length(&display_name, 1..=100, "Display name must be 1-100 characters")?;
    Ok(NewChannel { name: request.name.into(), display_name, parent: None, ..details.into_channel(created_by) })
}

/// CREATE_SUBCHANNEL: by the parent's creator or an admin, one level deep.
pub fn create_subchannel(shard: &mut Shard, key: SessionKey, request: &client::CreateSubchannel<'_>) {
    match check_subchannel(shard, key, request) {
        Ok(channel) => create(shard, key, channel, "Subchannel name already exists in this channel", refuse_subchannel),
        Err(text) => refuse_subchannel(shard, key, text),
    }
}

fn check_subchannel(
    shard: &mut Shard,
    key: SessionKey,
    request: &client::CreateSubchannel<'_>,
) -> Result<NewChannel, &'static str> {
    const ANONYMOUS: &str = "Only registered users can create subchannels. Please register or log in.";
    let session = shard.clients.session(key);
    let (created_by, is_admin) = (session.user().ok_or(ANONYMOUS)?, session.is_admin());
    let parent = shard.channels.get(request.channel_id).filter(|channel| channel.participants.is_none());
    let parent = parent.ok_or("Parent channel not found")?;
    if parent.created_by != Some(created_by) && !is_admin {
        return Err("Only the channel owner or admins can create subchannels");
    }
    new_subchannel(parent, request, Some(created_by))
}

/// A subchannel as it may be created.
///
/// # Errors
/// What is wrong with it, in the words of BEHAVIOUR.md 2.9.
pub fn new_subchannel(
    parent: &Channel,
    request: &client::CreateSubchannel<'_>,
    created_by: Option<UserId>,
) -> Result<NewChannel, &'static str> {
    const NESTED: &str = "Cannot create subchannels within subchannels (only one level of nesting allowed)";
    if parent.parent.is_some() {
        return Err(NESTED);
    }
    check_length(request.name, 3..=50, "Subchannel name must be 3-50 characters")?;
    let details = check_details(request.description, request.channel_type, request.retention_hours)?;
    check_name(request.name)?;
    let display_name = Name::from([&parent.display_name[..], b"/", request.name].concat());
    Ok(NewChannel {
        name: request.name.into(),
        display_name,
        parent: Some(parent.id),
        ..details.into_channel(created_by)
    })
}

fn check_length(
    text: &[u8],
    allowed: std::ops::RangeInclusive<usize>,
    refusal: &'static str,
) -> Result<(), &'static str> {
    if allowed.contains(&text.len()) { Ok(()) } else { Err(refusal) }
}

fn check_name(name: &[u8]) -> Result<(), &'static str> {
    if text::is_channel_name(name) { Ok(()) } else { Err("Invalid channel name") }
}

/// What channels and subchannels have in common.
struct Details {
    description: Name,
    channel_type: ChannelType,
    retention_hours: u32,
}

impl Details {
    fn into_channel(self, created_by: Option<UserId>) -> NewChannel {
        let Self { description, channel_type, retention_hours } = self;
        let nameless = Name::from(&b""[..]);
        NewChannel {
            name: nameless.clone(),
            display_name: nameless,
            description,
            channel_type,
            retention_hours,
            created_by,
            parent: None,
        }
    }
}

fn check_details(description: &[u8], channel_type: u8, retention_hours: u32) -> Result<Details, &'static str> {
    check_length(description, 0..=500, "Description must be at most 500 characters")?;
    let channel_type =
        ChannelType::from_wire(channel_type).ok_or("Invalid channel type (must be 0=chat or 1=forum)")?;
    if !(1..=8760).contains(&retention_hours) {
        return Err("Retention hours must be between 1 and 8760 (1 year)");
    }
    Ok(Details { description: Name::from(&text::sanitized(description)[..]), channel_type, retention_hours })
}

fn create(
    shard: &mut Shard,
    key: SessionKey,
    channel: NewChannel,
    name_taken: &'static str,
    refuse: fn(&mut Shard, SessionKey, &str),
) {
    let limited = channel.created_by.filter(|_| !shard.clients.session(key).is_exempt());
    if limited.is_some_and(|creator| !shard.rates.channels_by_user.admit(creator, shard.now.mono)) {
        shard.rate_limited(key, RateLimit::ChannelCreate);
        return refuse(shard, key, "Channel creation rate limit exceeded");
    }
    // In a channel of somebody else's, or of nobody's, it is an admin's act.
    let parent = channel.parent.and_then(|parent| shard.channels.get(parent));
    let command = match parent.is_some_and(|parent| parent.created_by != channel.created_by) {
        true => Command::Administer(Box::new(admin::order(shard.clients.session(key), Act::CreateChannel(channel)))),
        false => Command::CreateChannel(Box::new(channel)),
    };
    shard.submit(key, command, move |shard, key, result| match result {
        Ok(Event::ChannelCreated(channel)) => {
            let text = match channel.parent {
                None => [b"Channel '", &channel.display_name[..], b"' created successfully"].concat(),
                Some(_) => subchannel_created_text(&channel.name),
            };
            let flag = shard.settings.archive_flag(&channel);
            shard.reply(key, created(&channel, flag, &text));
        }
        Err(Refusal::NameTaken) => refuse(shard, key, name_taken),
        Err(Refusal::ChannelNotFound) => refuse(shard, key, "Parent channel not found"),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Database error"),
    });
}

/// Answers a request that names no place, in the words of the requests that subscribe or list.
pub fn refuse_place(shard: &mut Shard, key: SessionKey, no_place: NoPlace) {
    match no_place {
        NoPlace::Channel => shard.error(key, ErrorCode::ChannelNotFound, "Channel does not exist"),
        NoPlace::Subchannel => shard.error(key, ErrorCode::SubchannelNotFound, "Subchannel does not exist"),
    }
}

/// The place a request names, if the session may see it; otherwise it is answered.
pub fn enter(shard: &mut Shard, key: SessionKey, channel: ChannelId, subchannel: Option<ChannelId>) -> Option<Place> {
    match shard.channels.place(channel, subchannel) {
        Ok(place) if may_enter(shard, key, place) => return Some(place),
        Ok(_) => shard.error(key, ErrorCode::PermissionDenied, NOT_A_PARTICIPANT),
        Err(no_place) => refuse_place(shard, key, no_place),
    }
    None
}
