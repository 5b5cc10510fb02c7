//! Faults that are built in on purpose: each shows that the promise it breaks is watched.

use crate::rule::Rule;

macro_rules! sabotages {
    ($($(#[$note:meta])* $Name:ident $percent:literal => $($rule:ident)|+;)+) => {
        /// One way to be broken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Sabotage { $($(#[$note])* $Name),+ }

        impl Sabotage {
            /// How often of a hundred chances it strikes.
            pub fn percent(self) -> usize {
                match self { $(Self::$Name => $percent),+ }
            }

            /// The promises that are broken by it.
            pub fn breaks(self) -> &'static [Rule] {
                match self { $(Self::$Name => &[$(Rule::$rule),+]),+ }
            }
        }
    };
}

sabotages! {
    /// The store delivers the outcomes of a commit in another order than it committed them.
    SwappedOutcomes 20 => Order | Reply;
    /// A post is delivered twice.
    RepeatedOutcomes 20 => Order;
    /// A shard misses an outcome.
    LostOutcomes 5 => NoGap | Reply | Order | Rest | Ending;
    /// The bus loses what another shard said of its sessions.
    LostPeers 10 => Presence;
    /// A list shows an older state than what was delivered before it was asked for.
    StaleAnswers 50 => NoGap | Reply;
    /// A reader never answers.
    LostAnswers 10 => Reply | Rest;
    /// A post that is refused is stored nevertheless.
    KeptRefusals 10 => Durable | NoLeak;
    /// The model expects each broadcast once more than it comes.
    PhantomFrames 5 => NoGap | Order;
    /// A session's frames are not offered although its socket takes them.
    DelayedReaders 10 => Prompt;
    /// A session hears a channel that it never asked for.
    LeakedChannels 5 => NoGap | NoLeak;
    /// A session hears a conversation that it takes no part in.
    LeakedDms 5 => NoGap | NoLeak;
    /// What is hidden is delivered to everybody.
    LeakedShadows 50 => NoLeak | Order | Reply;
    /// A list shows what is hidden.
    SeeThrough 50 => NoLeak;
    /// A reader that keeps up is closed as a slow one.
    HastyClosing 2 => SlowReader;
    /// A reader that does not keep up is never closed.
    EndlessPatience 100 => SlowReader;
}
