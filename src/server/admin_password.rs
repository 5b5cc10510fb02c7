//! `admin_password`: at every start it becomes the password of the first listed admin (BEHAVIOUR.md 5.1).

use std::sync::Arc;

use tracing::{info, warn};

use crate::argon2id;
use crate::config::Settings;
use crate::desk::Desk;
use crate::passwords;
use crate::profile::tasks::{self, place};
use crate::store::{Act, Admin, Administer, Answer, Command, Name, Query, Store};

/// Sets it beside everything else: the hash takes a while, and nobody waits for it.
pub(super) fn reset(settings: &Settings, store: &Arc<dyn Store>, desk: &Arc<Desk>) {
    let Some(password) = &settings.server.admin_password else { return };
    let password = password.expose().to_owned();
    let Some(nickname) = settings.server.admin_users.first().cloned() else {
        return warn!("admin_password is set, and admin_users is empty: nothing was done");
    };
    let (store, desk) = (Arc::clone(store), Arc::clone(desk));
    drop(tasks::spawn(place!(), async move {
        match reset_of(&nickname, password, &*store, &desk).await {
            Ok(()) => info!(target: "security", "Reset password for admin user {nickname}"),
            Err(why) => warn!(target: "security", "the password of admin user {nickname} was not reset: {why}"),
        }
    }));
}

async fn reset_of(nickname: &str, password: String, store: &dyn Store, desk: &Desk) -> Result<(), String> {
    let query = Query::Account { nickname: nickname.as_bytes().into() };
    let account = match desk.ask(store, query).await {
        Ok(Answer::Account { account, .. }) => account.filter(|account| *account.nickname == *nickname.as_bytes()),
        Ok(_) => return Err("the database does not answer".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let user = account.ok_or("there is no such account")?.id;
    let salt = nickname.to_owned();
    let hash = move || passwords::hash(argon2id::client_hash(password.as_bytes(), salt.as_bytes())?.as_bytes());
    let hash = tokio::task::spawn_blocking(hash).await.ok().flatten().ok_or("it cannot be hashed")?;
    // As an operator's act, whose name no nickname can be.
    let by = Admin { name: Name::from(&b"admin_password (configuration)"[..]), address: None };
    let act = Act::ResetPassword { user, password_hash: hash };
    desk.submit(store, Command::Administer(Box::new(Administer { by, act })))
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}
