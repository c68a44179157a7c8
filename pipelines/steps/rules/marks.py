"""One flag table for all rules: the flags of pipelines.text.characters, and above them what the rule sets ask about a character.

Sentence ends are Unicode's Sentence_Terminal property (UCD PropList); white space is what Python's ``str.split`` splits at; punctuation is
what Gopher's word rules do not count as a word: ASCII punctuation, typographic and East Asian punctuation, controls, sentence ends.
Traditional and simplified Chinese: a small table of our own of the most frequent characters that differ, enough to tell which a text is written in.
Cost: 4.5 MB and 0.2 s, once per process.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.text.characters import LETTER, MARK, character_flags

WHITE = 1 << 17
"""``str.isspace``."""
PUNCTUATION = 1 << 18
"""A word of nothing else is a symbol word (Gopher)."""
TERMINAL = 1 << 19
"""Ends a sentence, in any script."""
WIDE_TERMINAL = 1 << 20
"""Ends a sentence without a space behind it: the full-width forms."""
CLOSING = 1 << 21
"""East Asian and typographic marks that close a quotation, and the ellipsis: end a line of unspaced script."""
BULLET = 1 << 22
"""Begins an item of a list."""
CODE_MARK = 1 << 23
"""Brackets, operators and the like: frequent in source code only."""
BAR = 1 << 24
"""Stands between the links of a navigation list."""
SIMPLIFIED = 1 << 25
"""Occurs in simplified Chinese only."""
TRADITIONAL = 1 << 26
"""Occurs in traditional Chinese only."""
ALPHA = 1 << 27
"""``str.isalpha``: letters without combining marks."""

Ranges = tuple[tuple[int, int], ...]
_WHITE: Ranges = (
    *((0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F)),
    *((0x205F, 0x205F), (0x3000, 0x3000)),
)
_TERMINAL: Ranges = (
    *((0x21, 0x21), (0x2E, 0x2E), (0x3F, 0x3F), (0x589, 0x589), (0x61D, 0x61F), (0x6D4, 0x6D4), (0x700, 0x702), (0x7F9, 0x7F9), (0x837, 0x837)),
    *((0x839, 0x839), (0x83D, 0x83E), (0x964, 0x965), (0x104A, 0x104B), (0x1362, 0x1362), (0x1367, 0x1368), (0x166E, 0x166E), (0x1735, 0x1736)),
    *((0x17D4, 0x17D6), (0x17D9, 0x17DA), (0x1803, 0x1803), (0x1809, 0x1809), (0x1944, 0x1945), (0x1AA8, 0x1AAB), (0x1B4E, 0x1B4F)),
    *((0x1B5A, 0x1B5B), (0x1B5E, 0x1B5F), (0x1B7D, 0x1B7F), (0x1C3B, 0x1C3C), (0x1C7E, 0x1C7F), (0x203C, 0x203D), (0x2047, 0x2049)),
    *((0x2CF9, 0x2CFB), (0x2E2E, 0x2E2E), (0x2E3C, 0x2E3C), (0x2E53, 0x2E54), (0x3002, 0x3002), (0xA4FF, 0xA4FF), (0xA60E, 0xA60F)),
    *((0xA6F3, 0xA6F3), (0xA6F7, 0xA6F7), (0xA876, 0xA877), (0xA8CE, 0xA8CF), (0xA92F, 0xA92F), (0xA9C8, 0xA9C9), (0xAA5D, 0xAA5F)),
    *((0xAAF0, 0xAAF1), (0xABEB, 0xABEB), (0xFE12, 0xFE12), (0xFE15, 0xFE16), (0xFE52, 0xFE52), (0xFE56, 0xFE57), (0xFF01, 0xFF01)),
    *((0xFF0E, 0xFF0E), (0xFF1F, 0xFF1F), (0xFF61, 0xFF61), (0x10A56, 0x10A57), (0x10F55, 0x10F59), (0x10F86, 0x10F89), (0x11047, 0x11048)),
    *((0x110BE, 0x110C1), (0x11141, 0x11143), (0x111C5, 0x111C6), (0x111CD, 0x111CD), (0x111DE, 0x111DF), (0x11238, 0x11239)),
    *((0x1123B, 0x1123C), (0x112A9, 0x112A9), (0x1144B, 0x1144C), (0x115C2, 0x115C3), (0x115C9, 0x115D7), (0x11641, 0x11642)),
    *((0x1173C, 0x1173E), (0x11944, 0x11944), (0x11946, 0x11946), (0x11A42, 0x11A43), (0x11A9B, 0x11A9C), (0x11C41, 0x11C42)),
    *((0x11EF7, 0x11EF8), (0x11F43, 0x11F44), (0x16A6E, 0x16A6F), (0x16AF5, 0x16AF5), (0x16B37, 0x16B38), (0x16B44, 0x16B44)),
    *((0x16E98, 0x16E98), (0x1BC9F, 0x1BC9F), (0x1DA88, 0x1DA88)),
)
_PUNCTUATION: Ranges = (
    *((0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0xAB, 0xAB), (0xB4, 0xB4), (0xBB, 0xBB)),
    *((0x2013, 0x2014), (0x2018, 0x2019), (0x201C, 0x201E), (0x2026, 0x2026), (0x2236, 0x2236), (0x2501, 0x2501), (0x25BA, 0x25BA)),
    *((0x3001, 0x3001), (0x3008, 0x3011), (0xFF05, 0xFF05), (0xFF08, 0xFF09), (0xFF0C, 0xFF0C), (0xFF1A, 0xFF1B), (0xFF5E, 0xFF5E)),
)
_MARKS = (
    (WIDE_TERMINAL, "。！？．｡﹒﹖﹗"),
    (CLOSING, "」』”’）】》〉…⋯"),
    (BULLET, "•‣◦⁃-–—*·・●○■□◆◇▪▫►▶※★☆–—－＊"),
    (CODE_MARK, "{}()[];=<>_\\|&+$:/*`^~@%"),
    (BAR, "|»›·•｜＞>"),
)
# One pair of characters each: simplified, traditional. Neither may be an everyday character of the other script or of Japanese.
_CHINESE = (
    "们們这這说說时時为為对對发發经經过過还還进進开開关關动動现現实實东東车車见見长長门門问問间間马馬鸟鳥鱼魚书書乐樂买買卖賣"
    "头頭观觀欢歡难難题題风風飞飛饭飯电電爱愛专專业業丛叢严嚴丧喪个個丰豐临臨丽麗举舉义義乌烏乔喬习習乡鄉亚亞产產亲親亿億仅僅从從"
    "仓倉仪儀价價众眾优優伙夥伟偉传傳伤傷伦倫伪偽体體侧側侨僑债債倾傾偿償储儲儿兒兰蘭兴興养養兽獸内內冈岡农農冯馮冲衝决決况況冻凍"
    "净淨凉涼减減凤鳳凭憑凯凱击擊凿鑿划劃刘劉则則刚剛创創删刪别別剂劑剑劍剧劇劝勸办辦务務劳勞势勢勋勳励勵华華协協单單卢盧卫衛却卻"
    "厂廠厅廳历歷厉厲压壓厌厭厦廈县縣参參双雙变變叙敘叶葉号號叹嘆听聽启啟吗嗎员員响響哑啞园園围圍图圖圆圓圣聖场場坏壞块塊坚堅坛壇"
    "坟墳垄壟垦墾垫墊堕墮墙牆壮壯声聲处處备備复復够夠夹夾夺奪奋奮奖獎妆妝妇婦妈媽娱娛孙孫学學宁寧宝寶审審宪憲宫宮宽寬宾賓寻尋导導"
    "将將尔爾尘塵尝嘗尧堯层層属屬岁歲岂豈岛島峡峽币幣师師帅帥带帶帮幫并並广廣庄莊庆慶库庫应應庙廟废廢张張弥彌弯彎弹彈强強归歸当當"
    "录錄彻徹径徑忆憶忧憂怀懷态態怜憐总總恋戀恳懇恶惡恼惱惊驚惧懼惨慘惩懲惯慣愤憤愿願战戰户戶扑撲执執扩擴扫掃扬揚扰擾抚撫抢搶护護"
    "报報担擔拟擬拥擁择擇挂掛挡擋挥揮损損换換据據摄攝摆擺敌敵数數斗鬥斩斬断斷无無旧舊旷曠显顯晓曉晕暈暂暫术術机機杀殺杂雜权權条條"
    "来來杨楊极極构構标標树樹样樣桥橋检檢楼樓欧歐残殘毁毀气氣汇匯汉漢汤湯沟溝没沒泪淚泽澤洁潔浅淺测測济濟浓濃涛濤润潤涨漲渐漸温溫"
    "湾灣湿濕满滿滚滾灭滅灯燈灵靈灾災炉爐点點炼煉烂爛烟煙烦煩烧燒热熱爷爺牵牽状狀犹猶独獨狮獅猎獵献獻玛瑪环環确確离離种種积積稳穩"
    "穷窮窃竊竞競笔筆简簡类類粮糧紧緊纪紀纯純纸紙线線练練组組细細终終结結给給络絡统統继繼续續绿綠编編网網罗羅罚罰职職联聯肃肅脑腦"
    "艺藝节節苏蘇药藥获獲营營萧蕭虑慮虽雖补補装裝规規视視觉覺计計认認讨討让讓议議记記讲講许許论論设設访訪证證评評识識诉訴词詞译譯试試"
    "话話该該详詳语語误誤请請读讀课課谁誰调調谈談谢謝谱譜负負财財责責败敗货貨质質购購贵貴费費资資赛賽赶趕跃躍转轉轮輪软軟轻輕较較"
    "达達迁遷运運远遠违違连連迟遲适適选選递遞邮郵释釋针針钟鐘钢鋼钱錢铁鐵银銀锁鎖错錯键鍵闭閉闻聞阅閱队隊阳陽阶階际際陆陸险險"
    "随隨隐隱静靜页頁顶頂项項顺順须須顾顧预預领領频頻颜顏额額饮飲馆館驱驅验驗骑騎鲜鮮鸡雞麦麥黄黃龙龍龟龜齐齊齿齒"
)


def _add(table: npt.NDArray[np.uint32], ranges: Ranges, flag: int) -> None:
    for first, last in ranges:
        table[first : last + 1] |= np.uint32(flag)


def _points(characters: str) -> Any:
    return np.unique([ord(character) for character in characters])


@functools.cache
def rule_flags() -> npt.NDArray[np.uint32]:
    """The flags of every code point, uint32 [0x110000], read-only."""
    table = character_flags().copy()
    table[(table & np.uint32(LETTER | MARK)) == LETTER] |= np.uint32(ALPHA)
    _add(table, _WHITE, WHITE)
    _add(table, _TERMINAL, TERMINAL | PUNCTUATION)
    _add(table, _PUNCTUATION, PUNCTUATION)
    for flag, characters in _MARKS:
        table[_points(characters)] |= np.uint32(flag)
    simplified, traditional = _points(_CHINESE[0::2]), _points(_CHINESE[1::2])
    table[np.setdiff1d(simplified, traditional)] |= np.uint32(SIMPLIFIED)
    table[np.setdiff1d(traditional, simplified)] |= np.uint32(TRADITIONAL)
    table.flags.writeable = False
    return table
