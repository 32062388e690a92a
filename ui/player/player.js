// Plays a sound as soon as a piece of it is there: `autoplay` waits until the browser deems the rest to come fast enough.

export default function ({ data, parentElement }) { // called anew with the same element when the page is drawn anew
    const player = parentElement.querySelector("audio");
    player.setAttribute("aria-label", data.label);
    player.autoplay = data.begins;
    player.preload = data.isWhole ? "metadata" : "none"; // many that wait would take all connections of the page
    if (player.getAttribute("src") === data.url && !player.error) return; // one that broke off is asked for again
    player.oncanplay = () => {
        player.oncanplay = null; // who stops it later is left in peace
        if (player.autoplay) player.play().catch(() => {}); // a browser may want a click first
    };
    player.src = data.url;
}
