//! What people, scripts and their mistakes meet: the real server over real sockets, by area.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../support/mod.rs"]
mod support;

mod accounts;
mod admin;
mod archive;
mod chat;
mod client;
mod connections;
mod directory;
mod dms;
mod limits;
mod malformed;
mod presence;
mod rates;
mod retention;
mod served;
mod shutdown;
mod slow;
mod startup;
mod steps;
mod storage;
mod subchannels;
mod threads;
mod unread;
mod users;
mod ways_in;
