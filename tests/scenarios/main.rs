//! Whole scenarios over real sockets, by area.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../support/mod.rs"]
mod support;

mod accounts;
mod chat;
mod presence;
mod retention;
mod steps;
mod storage;
mod subchannels;
mod threads;
mod unread;
mod users;
