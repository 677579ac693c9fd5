// The line between before and after: mouse, touch, keyboard. It is a slider to those who don't see it.

const CLICK = 5; // pixels that a finger trembles

// onClick(event): a press that did not move; returns true when it is used up, else the divider goes there.
export function divide(view, divider, onClick) {
  let at = 50;
  const move = percent => {
    at = Math.min(100, Math.max(0, percent));
    view.style.setProperty("--at", `${at}%`);
    divider.setAttribute("aria-valuenow", Math.round(at));
    divider.setAttribute("aria-valuetext", `${Math.round(at)} % before, ${100 - Math.round(at)} % after`);
  };
  const follow = event => {
    const box = view.getBoundingClientRect();
    move((event.clientX - box.left) / box.width * 100);
  };
  let held = null;
  view.addEventListener("pointerdown", event => {
    if (event.button !== 0) return;
    held = {id: event.pointerId, x: event.clientX, moved: false, grip: divider.contains(event.target)};
    view.setPointerCapture(event.pointerId);
  });
  view.addEventListener("pointermove", event => {
    if (!held || event.pointerId !== held.id) return;
    if (Math.abs(event.clientX - held.x) >= CLICK) held.moved = true;
    if (held.moved) follow(event);
  });
  view.addEventListener("pointerup", event => {
    if (!held || event.pointerId !== held.id) return;
    const {moved, grip} = held;
    held = null;
    if (moved || grip) divider.focus({preventScroll: true});
    else if (!onClick(event)) follow(event);
  });
  view.addEventListener("pointercancel", () => { held = null; });
  divider.addEventListener("keydown", event => {
    const step = event.shiftKey ? 10 : 2;
    const to = {ArrowLeft: at - step, ArrowDown: at - step, ArrowRight: at + step, ArrowUp: at + step,
      PageDown: at - 10, PageUp: at + 10, Home: 0, End: 100}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  });
  move(50);
}
