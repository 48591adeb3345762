//! Work on all threads with buffers that live as long as the work does.

use std::sync::Mutex;

use rayon::prelude::*;

/// `work(state, task)` of each task, in the order of the tasks. Each thread has one state, which serves the tasks that it happens to take: rayon's own
/// `map_init` makes a new one wherever it splits the work.
pub(crate) fn map_with<S: Default, T: Send, R: Send>(
    tasks: impl Iterator<Item = T> + Send,
    work: impl Fn(&mut S, T) -> R + Sync,
) -> Vec<R> {
    let tasks = Mutex::new(tasks.enumerate());
    let next = || tasks.lock().expect("no task panicked").next();
    let on_one_thread = |_| {
        let (mut state, mut results) = (S::default(), Vec::new());
        while let Some((index, task)) = next() {
            results.push((index, work(&mut state, task)));
        }
        results
    };
    let mut results: Vec<(usize, R)> =
        (0..rayon::current_num_threads()).into_par_iter().with_max_len(1).flat_map_iter(on_one_thread).collect();
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static STATES: AtomicUsize = AtomicUsize::new(0);

    struct State;

    impl Default for State {
        fn default() -> Self {
            STATES.fetch_add(1, Ordering::SeqCst);
            Self
        }
    }

    /// However rayon splits the work: it would make a state for each of its pieces.
    #[test]
    fn there_are_as_many_states_as_threads() {
        map_with(0..1000, |_: &mut State, task: usize| std::hint::black_box(task));
        assert_eq!(STATES.load(Ordering::SeqCst), rayon::current_num_threads());
    }

    #[test]
    fn results_come_in_the_order_of_the_tasks() {
        let squares = map_with(0..1000_usize, |(), task| {
            // The first tasks end last.
            std::thread::sleep(std::time::Duration::from_micros(if task < 4 { 2000 } else { 0 }));
            task * task
        });
        assert_eq!(squares, (0..1000).map(|task| task * task).collect::<Vec<_>>());
        assert!(map_with(std::iter::empty::<u8>(), |(), task| task).is_empty());
    }
}
