//! The order of a thread (BEHAVIOUR.md 2.12): depth first, siblings by rising id. Computed from a skeleton of three
//! values per message, so that the texts of a page are the only ones ever read.

use crate::ids::MessageId;
use crate::store::query::Cursor;

/// What the order depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bone {
    pub(super) id: MessageId,
    pub(super) parent: Option<MessageId>,
    pub(super) deleted: bool,
}

/// A message of a thread in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) id: MessageId,
    /// Where clients are to hang it.
    pub(super) parent: MessageId,
}

/// The replies below `top` that a list shows, from `cursor` on, at most `limit`. `bones` are those of the whole thread or
/// of any part that contains all replies below `top`; `top` is the thread's root when `adopts_orphans`: then replies whose
/// parent is missing hang directly below it.
pub(super) fn page(
    top: MessageId,
    adopts_orphans: bool,
    bones: Vec<Bone>,
    cursor: Cursor,
    limit: usize,
) -> Vec<Placed> {
    let nodes = order(top, family(top, adopts_orphans, bones));
    let start = match cursor {
        Cursor::Before(message) => nodes.iter().position(|node| node.placed.id == message).map(|at| at + 1),
        Cursor::None | Cursor::After(_) => None,
    };
    let wanted = |placed: &Placed| match cursor {
        Cursor::Before(message) => start.is_some() || placed.id < message,
        Cursor::After(message) => placed.id > message,
        Cursor::None => true,
    };
    let listed = nodes.iter().skip(start.unwrap_or(0)).filter(|node| node.listed).map(|node| node.placed);
    listed.filter(wanted).take(limit).collect()
}

struct Node {
    placed: Placed,
    /// Alive, or with something alive below.
    listed: bool,
    /// Position of the parent; `None` directly below the top.
    above: Option<usize>,
}

struct Child {
    placed: Placed,
    deleted: bool,
}

/// All possible children, sorted by parent and then by id, so that siblings lie side by side.
fn family(top: MessageId, adopts_orphans: bool, mut bones: Vec<Bone>) -> Vec<Child> {
    bones.sort_unstable_by_key(|bone| bone.id);
    let is_known = |id| id == top || bones.binary_search_by_key(&id, |bone| bone.id).is_ok();
    let parent_of = |bone: &Bone| match bone.parent {
        Some(parent) if !adopts_orphans || is_known(parent) => Some(parent),
        Some(_) => Some(top),
        None => None,
    };
    // In a circle of parents only the top itself could be met again.
    let replies = bones.iter().filter(|bone| bone.id != top);
    let mut children: Vec<Child> = replies
        .filter_map(|bone| {
            Some(Child { placed: Placed { id: bone.id, parent: parent_of(bone)? }, deleted: bone.deleted })
        })
        .collect();
    children.sort_by_key(|child| child.placed.parent);
    children
}

/// Depth first without recursion: old files may hold threads of any depth.
fn order(top: MessageId, children: Vec<Child>) -> Vec<Node> {
    let siblings = |parent: MessageId| {
        let start = children.partition_point(|child| child.placed.parent < parent);
        let end = start + children[start..].partition_point(|child| child.placed.parent == parent);
        start..end
    };
    let mut nodes: Vec<Node> = Vec::with_capacity(children.len());
    let mut open = vec![(siblings(top), None)];
    while let Some((rest, above)) = open.last_mut() {
        let above = *above;
        let Some(next) = rest.next() else {
            open.pop();
            continue;
        };
        let child = &children[next];
        open.push((siblings(child.placed.id), Some(nodes.len())));
        nodes.push(Node { placed: child.placed, listed: !child.deleted, above });
    }
    for at in (0..nodes.len()).rev() {
        if let (true, Some(above)) = (nodes[at].listed, nodes[at].above) {
            nodes[above].listed = true;
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bone(id: u64, parent: u64, deleted: bool) -> Bone {
        Bone { id: MessageId(id), parent: (parent != 0).then_some(MessageId(parent)), deleted }
    }

    fn ids(page: Vec<Placed>) -> Vec<u64> {
        page.into_iter().map(|placed| placed.id.0).collect()
    }

    /// 1 ( 2 ( 5, 7 ), 3 ( 6 ), 4 )
    fn thread() -> Vec<Bone> {
        [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 3), (7, 2)].map(|(id, parent)| bone(id, parent, false)).to_vec()
    }

    fn check(top: u64, cursor: Cursor, limit: usize, expected: &[u64]) {
        assert_eq!(ids(page(MessageId(top), top == 1, thread(), cursor, limit)), expected);
    }

    #[test]
    fn replies_come_depth_first_and_siblings_by_id() {
        check(1, Cursor::None, 10, &[2, 5, 7, 3, 6, 4]);
        check(1, Cursor::None, 3, &[2, 5, 7]);
        check(2, Cursor::None, 10, &[5, 7]);
        check(7, Cursor::None, 10, &[]);
    }

    #[test]
    fn before_a_message_of_the_thread_goes_on_behind_it() {
        check(1, Cursor::Before(MessageId(7)), 10, &[3, 6, 4]);
        check(1, Cursor::Before(MessageId(4)), 10, &[]);
    }

    #[test]
    fn before_any_other_message_is_meant_by_the_letter() {
        check(1, Cursor::Before(MessageId(8)), 10, &[2, 5, 7, 3, 6, 4]);
        check(2, Cursor::Before(MessageId(6)), 10, &[5]);
        check(1, Cursor::Before(MessageId(1)), 10, &[]);
    }

    #[test]
    fn after_filters_each_reply_by_itself() {
        check(1, Cursor::After(MessageId(4)), 10, &[5, 7, 6]);
        check(1, Cursor::After(MessageId(4)), 2, &[5, 7]);
    }

    #[test]
    fn deleted_replies_stay_while_something_below_them_lives() {
        let mut bones = thread();
        for gone in [2, 5, 3, 6] {
            bones[gone - 1].deleted = true;
        }
        assert_eq!(ids(page(MessageId(1), true, bones.clone(), Cursor::None, 10)), [2, 7, 4]);
        // The place of a message is known even when it is no longer shown.
        assert_eq!(ids(page(MessageId(1), true, bones, Cursor::Before(MessageId(5)), 10)), [7, 4]);
    }

    #[test]
    fn replies_to_a_missing_message_hang_below_the_root() {
        let bones = vec![bone(1, 0, false), bone(5, 4, false), bone(6, 5, false)];
        let placed = page(MessageId(1), true, bones.clone(), Cursor::None, 10);
        let expected = [(5, 1), (6, 5)].map(|(id, parent)| Placed { id: MessageId(id), parent: MessageId(parent) });
        assert_eq!(placed, expected);
        assert_eq!(ids(page(MessageId(5), false, bones, Cursor::None, 10)), [6]);
    }

    #[test]
    fn circles_end() {
        let bones = vec![bone(1, 0, false), bone(2, 3, false), bone(3, 2, false), bone(4, 4, false)];
        assert_eq!(ids(page(MessageId(1), true, bones.clone(), Cursor::None, 10)), [0; 0]);
        assert_eq!(ids(page(MessageId(2), false, bones, Cursor::None, 10)), [3]);
    }

    /// By the words of the specification: recursion, and one question per rule.
    fn model(top: u64, bones: &[Bone], cursor: Cursor, limit: usize) -> Vec<u64> {
        fn lives(bones: &[Bone], bone: &Bone) -> bool {
            !bone.deleted || bones.iter().any(|child| child.parent == Some(bone.id) && lives(bones, child))
        }
        fn walk(bones: &[Bone], parent: u64, out: &mut Vec<Bone>) {
            let mut children: Vec<Bone> =
                bones.iter().copied().filter(|bone| bone.parent == Some(MessageId(parent))).collect();
            children.sort_by_key(|bone| bone.id);
            for child in children {
                out.push(child);
                walk(bones, child.id.0, out);
            }
        }
        let mut all = Vec::new();
        walk(bones, top, &mut all);
        let place = |message| all.iter().position(|bone| bone.id == message);
        all.iter()
            .enumerate()
            .filter(|(at, bone)| match cursor {
                Cursor::None => true,
                Cursor::After(message) => bone.id > message,
                Cursor::Before(message) => place(message).map_or(bone.id < message, |place| *at > place),
            })
            .filter(|(_, bone)| lives(bones, bone))
            .map(|(_, bone)| bone.id.0)
            .take(limit)
            .collect()
    }

    prop_compose! {
        /// Threads whose ids say nothing about depth, as old files may hold.
        fn threads()(links in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..40),
                     order in any::<u64>()) -> Vec<Bone> {
            let count = links.len() as u64 + 1;
            let step = if order % count == 0 { 1 } else { order % count };
            let scattered = |place: u64| 1 + if step_is_coprime(step, count) { (place * step) % count } else { place };
            let mut bones = vec![Bone { id: MessageId(scattered(0)), parent: None, deleted: false }];
            for (place, (parent, deleted)) in (1..).zip(links) {
                let parent = bones[parent.index(bones.len())].id;
                bones.push(Bone { id: MessageId(scattered(place)), parent: Some(parent), deleted });
            }
            bones
        }
    }

    fn step_is_coprime(a: u64, b: u64) -> bool {
        if b == 0 { a == 1 } else { step_is_coprime(b, a % b) }
    }

    proptest! {
        #[test]
        fn pages_are_those_of_a_naive_model(
            bones in threads(), top in any::<prop::sample::Index>(), at in 0u64..45, kind in 0..3, limit in 0usize..50,
        ) {
            let cursor = [Cursor::None, Cursor::Before(MessageId(at)), Cursor::After(MessageId(at))][kind as usize];
            let top = top.index(bones.len());
            let expected = model(bones[top].id.0, &bones, cursor, limit);
            prop_assert_eq!(ids(page(bones[top].id, top == 0, bones.clone(), cursor, limit)), expected);
        }
    }
}
